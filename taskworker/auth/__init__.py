"""Who is who: certificates of members, tokens to join with, tokens of users, and what each of them may do."""
