"""What people look at: terminal tables made of results. No numerics."""
