"""Drawing and scoring completions over shared prompts."""
