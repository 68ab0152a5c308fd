-- Version 2: what a partition ended is listed in the order of its numbers.

CREATE INDEX final_task_number ON taskmaster.final_task (cluster, partition, number);
