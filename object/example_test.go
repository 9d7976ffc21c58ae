package object_test

import (
	"fmt"
	"log"

	"github.com/holdfast-bpf/holdfast/object"
)

// An object is opened, one of its variables is set and its program loaded.
func Example() {
	o, err := object.Open("filter.o")
	if err != nil {
		log.Fatal(err)
	}
	if err := o.Set("drop_port=53"); err != nil {
		log.Fatal(err)
	}
	loaded, err := o.Load(object.LoadOptions{Program: object.Choice{Name: "filter"}})
	if err != nil {
		log.Fatal(err)
	}
	defer loaded.Close()
	fmt.Println(loaded.Info, "runs at priority", loaded.RunConfig.Priority)
}
