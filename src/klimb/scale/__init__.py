"""The same run on several processes: torch.distributed, and how it is launched."""
