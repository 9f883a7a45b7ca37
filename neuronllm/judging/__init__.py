"""What an edit is worth: a model judged with and without it, and how strong it had best be."""
