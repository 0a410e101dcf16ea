"""Search a config's fields for the best trade-offs: trials on Ray Tune, and the front they leave."""
