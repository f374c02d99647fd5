"""Charts of the HTML pages."""
