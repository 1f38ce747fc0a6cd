"""Rows of files, chat messages and prompts."""
