"""The audit trail: who was refused what, who changed what, and what operators did."""
