"""What a learner calls: predict, exercise, claim, exam, and what is kept of them."""
