module example.com/clones

go 1.26
