"""The student: a Faster R-CNN with a depth head that imitates its teachers on the way to its detections."""
