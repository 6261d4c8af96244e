"""What joins the stages within a cycle: the bench they are lent, collecting, the three lanes,
the decision over lanes."""
