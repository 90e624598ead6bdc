"""What judges are asked, as data, and how their answers are read."""
