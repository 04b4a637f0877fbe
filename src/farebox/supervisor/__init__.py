"""Several workers on one port: started, watched over, replaced, told of a new config, and stopped in order.

`supervisor` holds what there is once, and keeps a worker in every slot; `child` is one worker seen
from outside; `messages` is what the two say to each other; `patience` is how long to wait before
one more try. The worker itself is `farebox.worker`.
"""

from farebox.supervisor.supervisor import Supervisor

__all__ = ["Supervisor"]
