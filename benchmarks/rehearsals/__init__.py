"""Rehearsals of scripts, engines and releases of torch, beside what is known of them."""
