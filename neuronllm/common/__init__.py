"""What every room needs: the error of bad input, files, what was built and found, numbers as text, a few statistics."""
