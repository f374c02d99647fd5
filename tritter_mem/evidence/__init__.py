"""What shows that the answers are right: audit, validation, probes of a card."""
