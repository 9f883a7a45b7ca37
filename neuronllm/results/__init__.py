"""What an attribution ends in: scores, what is kept of single prompts, and neuron sets."""
