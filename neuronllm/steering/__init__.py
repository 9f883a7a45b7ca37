"""Edits that stay: neurons baked into a model's weights."""
