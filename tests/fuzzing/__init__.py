"Hostile files for every reader and command: good ones (`seeds`), ways to spoil them (`mutate`), files made by hand (`traps`), and what is allowed to happen (`oracle`)"
