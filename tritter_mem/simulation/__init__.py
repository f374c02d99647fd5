"""Running a model and recording every storage that it allocates and frees."""
