"""What people look at, made of results: terminal tables, and pages for a browser. No numerics."""
