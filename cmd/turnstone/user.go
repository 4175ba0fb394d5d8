package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/output"
	"turnstone/cmd/turnstone/internal/users"
	"turnstone/turn"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// editPatience is how long a command waits for others that change the file of users.
const editPatience = 10 * time.Second

func userCommand(o *options) *cobra.Command {
	return group("user", "Add, remove and list the users of a file, and ban users",
		userAdd(o), userRemove(o), userList(o), userBan(o), userUnban(o), userBanned(o))
}

type userRow struct {
	Name  string `json:"name"`
	Realm string `json:"realm"`
}

type userChange struct {
	Name  string `json:"name"`
	Realm string `json:"realm"`
	State string `json:"state"`
}

func userAdd(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "add NAME", Short: "Add a user, or give one another password", Args: cobra.ExactArgs(1),
		Long: "Adds a user of the realm to the file of users, or gives one who is there another password. It asks for the password,\nor takes the first line of stdin. What is kept are the keys that stand for it (MD5 and SHA-256), which are good for\nthis realm alone. A running daemon takes them within two seconds.",
		Example: `  turnstone user add alice --config /etc/turnstone/turnstone.toml
  turnstone user add alice --users-file /etc/turnstone/users --realm example.org < password`,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			path, realm, err := usersFile(cmd)
			if err != nil {
				return err
			}
			name, err := turn.OpaqueString(args[0])
			if err != nil || len(name) > turn.MaxUsername {
				return usageError("%q is no name of a user: want 1 to %d bytes of text", args[0], turn.MaxUsername)
			}
			password, err := askPassword(cmd.InOrStdin(), cmd.ErrOrStderr(), "Password: ", "Again: ")
			if err != nil {
				return err
			}
			state := "added"
			err = editUsers(cmd.Context(), path, func(list []users.User) ([]users.User, error) {
				list, there := users.Put(list, users.New(name, realm, password))
				if there {
					state = "changed"
				}
				return list, nil
			})
			if err != nil {
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, userChange{name, realm, state})
		},
	}
	usersFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

func userRemove(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "remove NAME", Short: "Remove a user", Args: cobra.ExactArgs(1),
		Long:              "Removes a user of the realm from the file of users. A running daemon ends the user's allocations within two seconds.",
		Example:           "  turnstone user remove alice --config /etc/turnstone/turnstone.toml",
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			path, realm, err := usersFile(cmd)
			if err != nil {
				return err
			}
			name, err := turn.OpaqueString(args[0])
			if err != nil {
				return usageError("%q is no name of a user", args[0])
			}
			err = editUsers(cmd.Context(), path, func(list []users.User) ([]users.User, error) {
				list, there := users.Without(list, name, realm)
				if !there {
					return nil, fmt.Errorf("there is no user %q of the realm %q in %s", name, realm, path)
				}
				return list, nil
			})
			if err != nil {
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, userChange{name, realm, "removed"})
		},
	}
	usersFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

func userList(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the users", Args: cobra.NoArgs,
		Long: "Lists the users in the file, of every realm. Their keys are not shown.",
		Example: `  turnstone user list --config /etc/turnstone/turnstone.toml
  turnstone user list --users-file /etc/turnstone/users -o csv`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, _, err := usersFile(cmd)
			if err != nil {
				return err
			}
			list, err := users.Read(path)
			if err != nil {
				return err
			}
			rows := make([]userRow, len(list))
			for i, u := range list {
				rows[i] = userRow{u.Name, u.Realm}
			}
			return output.Rows(cmd.OutOrStdout(), o.format, rows)
		},
	}
	usersFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// usersFlags say where the file is, and what realm is meant.
func usersFlags(cmd *cobra.Command) {
	config.Flags(cmd.Flags())
	cmd.Flags().VisitAll(hideAllBut("config", "users-file", "realm"))
}

// usersFile is the file of the configuration, and its realm.
func usersFile(cmd *cobra.Command) (path, realm string, err error) {
	c, _, err := config.Load(cmd.Flags())
	if err != nil {
		return "", "", usageError("%w", err)
	}
	if c.Auth.UsersFile == "" {
		return "", "", usageError("there is no file of users: give --config with auth.users-file in it, $TURNSTONE_USERS_FILE or --users-file")
	}
	if realm, err = c.PreparedRealm(); err != nil {
		return "", "", usageError("%w", err)
	}
	return c.Auth.UsersFile, realm, nil
}

func editUsers(ctx context.Context, path string, change func([]users.User) ([]users.User, error)) error {
	ctx, cancel := context.WithTimeout(ctx, editPatience)
	defer cancel()
	return users.Edit(ctx, path, change)
}

// askPassword asks for a password by each of prompts where stdin is a terminal; else it is the first line.
func askPassword(stdin io.Reader, stderr io.Writer, prompts ...string) (string, error) {
	f, isFile := stdin.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		line, err := bufio.NewReader(stdin).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("read the password: %w", err)
		}
		return checkPassword(strings.TrimRight(line, "\r\n"))
	}
	var given []string
	for _, prompt := range prompts {
		fmt.Fprint(stderr, prompt)
		b, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(stderr)
		if err != nil {
			return "", fmt.Errorf("read the password: %w", err)
		}
		given = append(given, string(b))
	}
	if len(slices.Compact(given)) > 1 {
		return "", usageError("the passwords differ")
	}
	return checkPassword(given[0])
}

// checkPassword prepares a password as it goes into a key.
func checkPassword(s string) (string, error) {
	if s == "" {
		return "", usageError("the password is empty")
	}
	prepared, err := turn.OpaqueString(s)
	if err != nil {
		return "", usageError("the password has a character that may not be in one (RFC 8265, OpaqueString)")
	}
	return prepared, nil
}
