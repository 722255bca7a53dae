"""What a backend is, which ones there are, and how one in another Python is reached."""
