"""What a model is: bundled ones, and code that the user names."""
