"""What was found, handed to other libraries, and what they hold taken in: one module a library."""
