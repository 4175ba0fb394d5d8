package config

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/caarlos0/env/v11"
	"github.com/spf13/pflag"
)

const (
	envPrefix      = "TURNSTONE_"
	stateDirectory = "STATE_DIRECTORY" // as systemd sets it
)

// Packaged is the configuration that the packages bring for their service, and where that has its data.
const (
	Packaged     = "/etc/turnstone/turnstone.toml"
	packagedData = "/var/lib/turnstone"
)

// Installed is [Packaged] where the service is meant: it is there, and neither the environment nor data in the working
// directory says that another daemon is. Else it is empty.
func Installed() string {
	for _, v := range []string{envPrefix + "CONFIG", envPrefix + "DATA", envPrefix + "ADMIN_SOCKET", stateDirectory} {
		if os.Getenv(v) != "" {
			return ""
		}
	}
	if _, err := os.Stat(dataHere); err == nil {
		return ""
	}
	if _, err := os.Stat(Packaged); err != nil {
		return ""
	}
	return Packaged
}

// Origins says where the value of each setting comes from, by key.
type Origins map[string]string

// Base reads the configuration without flags: defaults, over them the file, over it the
// environment. File "" is what TURNSTONE_CONFIG names, if anything.
func Base(file string) (Config, Origins, error) {
	c := Default()
	origins := Origins{}
	for _, s := range Settings(&c) {
		origins[s.Key] = "default"
	}
	if file == "" {
		file = os.Getenv(envPrefix + "CONFIG")
	}
	if file != "" {
		if err := readFile(&c, file, origins); err != nil {
			return c, nil, err
		}
	}
	err := readEnvironment(&c, origins)
	if c.Data == "" && file == Packaged && os.Getenv(stateDirectory) == "" {
		c.Data, origins["data"] = packagedData, "the package"
	}
	return c, origins, err
}

// Load reads the configuration: [Base] with the file that --config names, over it the flags. Paths
// that nobody set are what they come to.
func Load(set *pflag.FlagSet) (Config, Origins, error) {
	file, err := set.GetString("config")
	if err != nil {
		return Config{}, nil, err
	}
	c, origins, err := Base(file)
	if err != nil {
		return c, nil, err
	}
	for _, s := range Settings(&c) {
		f := set.Lookup(s.Flag)
		if !f.Changed {
			continue
		}
		origins[s.Key] = "--" + s.Flag
		s.value.Set(f.Value.(*flagValue).value)
	}
	if c.Data == "" && os.Getenv(stateDirectory) != "" {
		origins["data"] = "$" + stateDirectory
	}
	c.Data, c.AdminSocket = c.DataDir(), c.Socket()
	return c, origins, nil
}

// readEnvironment reads what the environment sets into c.
func readEnvironment(c *Config, origins Origins) error {
	if err := env.ParseWithOptions(c, env.Options{Prefix: envPrefix}); err != nil {
		var problems []error
		var several env.AggregateError
		if !errors.As(err, &several) {
			return fmt.Errorf("read the environment: %w", err)
		}
		for _, e := range several.Errors {
			problems = append(problems, fmt.Errorf("read the environment: %w", named(c, e)))
		}
		return errors.Join(problems...)
	}
	for _, s := range Settings(c) {
		if os.Getenv(s.Env) != "" { // an empty one is as good as none
			origins[s.Key] = "$" + s.Env
		}
	}
	return nil
}

// named is what is wrong with a variable, under its own name.
func named(c *Config, err error) error {
	var parse env.ParseError
	if !errors.As(err, &parse) {
		return err
	}
	for _, s := range Settings(c) {
		if s.field == parse.Name {
			return fmt.Errorf("%s: %w", s.Env, plain(parse.Err))
		}
	}
	return parse.Err
}

// plain is err without the name of the function it came from.
func plain(err error) error {
	var number *strconv.NumError
	if errors.As(err, &number) {
		return fmt.Errorf("%q is no number", number.Num)
	}
	return err
}
