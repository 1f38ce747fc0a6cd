"""The main job in one command: a real language model learns from human judgement."""
