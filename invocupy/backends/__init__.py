"""The code that runs on each kind of machine: a folder per operator, a module per machine.

======================  ===================================================================