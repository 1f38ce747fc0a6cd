"""A Hugging Face model, loaded, checked and made fast: what policies and rewards both stand on."""
