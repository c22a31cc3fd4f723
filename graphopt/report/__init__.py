"""What a run tells its user: terminal table, JSON, one HTML file."""
