"""Questions, where they come from, and how they become prompts; nothing here knows a model."""
