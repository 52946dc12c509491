"""What only the course's authors run: house rules, publishing, timings, networks and grids again."""
