"""What breaks in production, done to real servers while messages flow; judged from outside."""
