"""Running work again with less when memory runs out."""
