"""The crash laboratory: proof that killed runs and lost power change no bit that klimb has promised."""
