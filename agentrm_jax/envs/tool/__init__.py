"""Tool use: questions to services (`query`) and work in documents (`operation`)."""
