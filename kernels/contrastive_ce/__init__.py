"""Objectives on a question's options and their gradient, without the rest of the vocabulary: see README.md."""
