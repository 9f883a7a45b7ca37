"""Scores of GLU neurons, summed over each question's tokens, in the same pass as the gradients: see README.md."""
