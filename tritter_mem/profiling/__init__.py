"""Questions that take several kinds of answer: profile, checkpointing, ladder, history."""
