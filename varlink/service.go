package varlink

import (
	"context"
	"encoding/json"
	"strings"
	"time"
)

const serviceName = "org.varlink.service"

// service is the interface that every server has.
const service = `# What every Varlink service can be asked.
interface org.varlink.service

# What this service is, and which interfaces it has.
method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)

# The description of an interface.
method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
error PermissionDenied ()
error ExpectedMore ()
`

// Info is what a service says of itself.
type Info struct {
	Vendor     string   `json:"vendor"`
	Product    string   `json:"product"`
	Version    string   `json:"version"`
	URL        string   `json:"url"`
	Interfaces []string `json:"interfaces"`
}

func (s *Server) handleService() error {
	return s.Handle(service, map[string]Method{
		"GetInfo": func(_ context.Context, c *Call) error {
			info := Info{Vendor: s.Vendor, Product: s.Product, Version: s.Version, URL: s.URL, Interfaces: []string{}}
			for _, i := range s.interfaces {
				info.Interfaces = append(info.Interfaces, i.description.Name)
			}
			return c.Reply(info)
		},
		"GetInterfaceDescription": func(_ context.Context, c *Call) error {
			var p struct {
				Interface string `json:"interface"`
			}
			if err := c.Decode(&p); err != nil {
				return err
			}
			i := s.find(p.Interface)
			if i == nil {
				return serviceError("InterfaceNotFound", "interface", p.Interface)
			}
			return c.Reply(map[string]string{"description": i.description.Text})
		},
	})
}

func serviceError(name, parameter, value string) *Error {
	b, err := json.Marshal(map[string]string{parameter: value})
	if err != nil {
		panic(err) // a map of strings has no other answer
	}
	return &Error{Name: serviceName + "." + name, Parameters: b}
}

func invalidParameter(which string) *Error {
	return serviceError("InvalidParameter", "parameter", which)
}

// InvalidParameter is the error of a parameter that is not what it should be.
func InvalidParameter(name string) error { return invalidParameter(name) }

// ExpectedMore is the error of a call that must ask for more and does not.
func ExpectedMore() error { return &Error{Name: serviceName + ".ExpectedMore"} }

// split parts a method's name from its interface's.
func split(method string) (iface, name string) {
	n := strings.LastIndexByte(method, '.')
	return method[:max(n, 0)], method[n+1:]
}

// pause waits a little after a connection could not be accepted, and tells whether
// to go on.
func (s *Server) pause(ctx context.Context, why error) bool {
	s.log("no connection can be accepted for a moment", "error", why)
	select {
	case <-ctx.Done():
		return false
	case <-time.After(50 * time.Millisecond):
		return true
	}
}
