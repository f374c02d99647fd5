"""Reporters: finished results in, text out. Nothing here measures, plans or imports PyTorch."""
