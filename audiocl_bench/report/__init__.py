"""What is shown of results: terminal tables, figures and the leaderboard, all computed from the stored tables."""
