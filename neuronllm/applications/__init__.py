"""What neurons of single questions and of subjects are good for: facts edited, answers predicted, tasks compared."""
