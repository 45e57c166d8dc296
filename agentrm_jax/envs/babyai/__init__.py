"""BabyAI: grid levels in words."""
