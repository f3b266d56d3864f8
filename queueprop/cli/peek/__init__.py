"""``queueprop peek``: the context of the messages that wait in a queue, without consuming them."""
