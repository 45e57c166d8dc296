"""WebShop: a shop with a search engine."""
