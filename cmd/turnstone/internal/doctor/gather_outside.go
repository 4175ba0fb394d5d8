package doctor

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// dmi is where the kernel shows what the firmware says of the machine.
const dmi = "/sys/class/dmi/id"

// clouds are the clouds that give their machines a private address behind a 1:1 NAT, by what the firmware says in a
// file of [dmi].
var clouds = []struct{ file, text, name string }{
	{"sys_vendor", "Amazon EC2", "Amazon EC2"},
	{"product_name", "Google Compute Engine", "Google Cloud"},
	{"sys_vendor", "Alibaba Cloud", "Alibaba Cloud"},
	{"sys_vendor", "Tencent Cloud", "Tencent Cloud"},
	{"sys_vendor", "OpenStack Foundation", "an OpenStack cloud"},
	{"chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77", "Azure"},
	{"chassis_asset_tag", "OracleCloud.com", "Oracle Cloud"},
}

// cloud is the name of the cloud that this machine is in, as far as the files in dir tell; empty: they do not.
func cloud(dir string) string {
	for _, c := range clouds {
		b, err := os.ReadFile(filepath.Join(dir, c.file))
		if err == nil && strings.TrimSpace(string(b)) == c.text {
			return c.name
		}
	}
	return ""
}

// ownAddresses are those of the interfaces.
func ownAddresses() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out, nil
}
