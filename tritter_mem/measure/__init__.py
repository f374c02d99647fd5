"""Running on a device in a child process, and what it then measured."""
