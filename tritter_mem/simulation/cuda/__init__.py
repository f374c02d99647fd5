"""What a card does that the `meta` device does not."""
