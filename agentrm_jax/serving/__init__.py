"""Reward models and policies over HTTP: contracts, limits, the models behind them, and the application that joins them."""
