"""Long work: training runs made of steps, an index built or refreshed, questions answered and the answers measured."""
